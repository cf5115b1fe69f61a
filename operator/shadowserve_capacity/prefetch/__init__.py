"""Exact parallel predictive prefetching for Metropolis-Hastings chains.

After Angelino, Kohler, Waterland, Seltzer and Adams, "Accelerating MCMC via parallel predictive prefetching", UAI 2014.
"""
