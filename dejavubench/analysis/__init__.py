"""Records → rows → tables and figures. Imports only records, never torch or MPI."""
