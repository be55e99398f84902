"""What a run leaves on disk: its name, the protocol of its folder, how it ended."""
