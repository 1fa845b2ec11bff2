"""What the commands share: options, columns, safe text, and a run followed at the terminal."""
