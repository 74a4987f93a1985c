"""Raw loops that destinations are held against; importing these modules loads torch and MPI."""
