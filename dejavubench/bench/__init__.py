"""One measured session: who runs what when, the clocks, the records and the verification."""
