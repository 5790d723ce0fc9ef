"""What a run would need, before it runs: memory of a layout, and which settings fit where one does not."""
