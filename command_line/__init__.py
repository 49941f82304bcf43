"""What all scripts share: flags, and files that are checked and written whole or not at all."""
