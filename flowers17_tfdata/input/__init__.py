"""From stored examples to batches on the devices."""
