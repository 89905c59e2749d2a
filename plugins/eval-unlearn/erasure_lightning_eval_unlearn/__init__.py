"""Any edit of erasure_lightning as a technique of the eval-unlearn benchmark."""
