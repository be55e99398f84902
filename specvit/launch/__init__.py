"""Where workers run: in this process, or in slots of this machine."""
