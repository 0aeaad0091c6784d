"""What surrounds a run while it goes: its lock, its log, its end by a signal."""
