"""Where the cache can go: a file each."""
