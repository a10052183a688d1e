"""What processes share besides slots: sockets and their messages, descriptors, locks, the event loop."""
