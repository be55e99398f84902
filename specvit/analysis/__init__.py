"""What finished runs amount to beside the best that their test set allows. Reads run folders, never trains."""
