"""Parts of a report that are notes alone: sentences below its tables, each of a declared kind."""
