"""Facts about this machine that the kernel, its files and small programs tell."""
