"""What `bench` and `tune` measure."""
