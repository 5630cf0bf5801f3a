"""What was found, for people: pictures."""
