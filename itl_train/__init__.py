"""Everything that updates weights."""
