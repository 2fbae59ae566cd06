"""What is there when this is imported is there for good: looking for garbage no longer goes through it.

Half a million objects of torch and Dask take a second or more to go through, in each process of a cluster, whenever a
test makes sure that nothing is left on it.
"""

import gc

gc.collect()
gc.freeze()
