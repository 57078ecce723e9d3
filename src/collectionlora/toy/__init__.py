"""The method on points in the plane, where truth is exact and a run takes seconds."""
