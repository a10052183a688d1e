"""`prefetchd doctor`: what this machine is (`facts`), and what that means for prefetchd (`judge`)."""
