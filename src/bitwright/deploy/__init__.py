"""From a state to a file that a real runtime serves, and back: write, read, verify, benchmark."""
