"""The options of a run, in groups: each field is a key of the TOML file and a flag of ``run``."""
