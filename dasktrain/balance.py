"""What is done about classes that are rare: ``fit(..., balance=dt.balance.Oversample())``.

================  =================================================================================================
ClassWeights      Every row once an epoch, those of rare classes with a larger weight.
Oversample        Rows of rare classes several times an epoch.
Undersample       Of common classes as many rows an epoch as of rare ones, others every epoch.
Smote             As Oversample, with rows between a row and its neighbours in place of those that would come again.
Gan               As Oversample, with rows of a generator that was trained on those of rare classes.
================  =================================================================================================

None of them copies or moves data: they say which rows a plan reads, and how much each counts. All but the first deal
rows by class, as ``partition="stratified"`` does, so that rounds have the balanced mix; that alone, without a balance,
gives each round the mix of the data. An epoch's counts are exact, follow from the seed, and are the same on any number
of workers and after a resume. Validation data are left as they are.

A model of balanced rows is sure of rare classes more often than they occur: its probabilities are those of the
balanced mix.
"""

from dasktrain.balancing import Balance, ClassWeights, Oversample, Smote, Undersample
from dasktrain.gan import Gan

__all__ = ["Balance", "ClassWeights", "Gan", "Oversample", "Smote", "Undersample"]
