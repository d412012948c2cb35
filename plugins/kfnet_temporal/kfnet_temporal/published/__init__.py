"""The published networks, their training and their files."""
