"""Failures: of one arm, which the others survive, and of a rank, which ends the job."""
