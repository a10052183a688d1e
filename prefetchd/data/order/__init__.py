"""The order of a data set, of its options and its data: subsets, weights, mixtures, buckets. In the daemon, at open."""
