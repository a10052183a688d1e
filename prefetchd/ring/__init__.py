"""The ring: slots of shared memory, the layout of a batch in one, and the queues beside them."""
