"""The consumer's side: loaders, their connection to a daemon, and the batches they hold."""
