"""Model families: what sets one apart from another, as data, one file each."""
