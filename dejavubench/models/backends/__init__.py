"""The operators of each kind of device, behind the protocol of base.py."""
