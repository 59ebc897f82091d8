"""Plain-text word lists from which people are made; SOURCES.md names their origins and licences."""
