"""What the host and the tool server share."""
