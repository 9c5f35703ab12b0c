"""The machine itself: its memory and its clock."""
