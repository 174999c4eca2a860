"""Detection: Mask R-CNN on a simple pyramid, with its data, training and COCO's average precision."""
