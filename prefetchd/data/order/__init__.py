"""The order of a data set's samples, made of its options and its data: subsets. In the daemon, once a data set."""
