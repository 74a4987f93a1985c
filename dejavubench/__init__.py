"""DéjàVuLib, KV-cache streaming for generative models, and the suite that measures it."""

__version__ = "0.1.0rc2"
