"""Says where the dataset of earlier versions is: verl's configs name this module by ``pkg://``."""

raise ImportError("segrl.verl.sft_dataset is now segrl.sft.dataset: set data.custom_cls.path=pkg://segrl.sft.dataset")
