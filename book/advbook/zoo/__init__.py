"""Many training methods of one study side by side, and records of their networks."""
