"""Metrics: COCO's box and mask AP, and Matterport's per-image AP."""
