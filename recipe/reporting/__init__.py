"""What a run did: report page, terminal tables, comparison, verification."""
