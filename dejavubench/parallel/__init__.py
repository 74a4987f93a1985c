"""The place of each rank, and its communication over MPI and NCCL."""
