"""Models with a known cause: one file each, giving M0, the preference pairs and the truth."""
