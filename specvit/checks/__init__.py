"""What `specvit doctor` checks before a run: its rules, and what they measure of network, data and first steps."""
