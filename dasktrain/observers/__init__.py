"""Observers that come with dasktrain: what happens in a run is shown, kept, copied to other tools, or ended."""
