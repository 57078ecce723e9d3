"""Ordinary edit instructions for a new collection: each fits any photo, whatever is on it."""

ADJUST = (
    "keep the photo unchanged",
    "make the photo a little brighter",
    "make the photo darker",
    "increase the contrast",
    "lower the contrast",
    "make the colours stronger",
    "make the colours softer",
    "make the light warmer",
    "make the light cooler",
    "make the photo sharper",
    "improve the lighting and keep everything else",
    "make the photo black and white",
)
STYLE = (
    "turn the photo into a pencil drawing",
    "turn the photo into a watercolour painting",
    "turn the photo into an oil painting",
    "turn the photo into a flat vector illustration",
    "turn the photo into a comic book panel",
    "turn the photo into a 3D render",
    "turn the photo into pixel art",
    "make it look like an old photograph in sepia",
    "make it look like a frame of a film",
    "make it look like a children's book illustration",
)
BACKGROUND = (
    "replace the background with a plain white one",
    "replace the background with a plain dark blue one",
    "blur the background",
    "darken the background",
    "make the background black and white and keep the foreground in colour",
    "replace the background with a beach",
    "replace the background with a forest",
    "replace the background with a city street at night",
    "change the time of day to sunset",
    "change the time of day to night",
    "change the season to winter",
    "change the season to autumn",
)
ADD = (
    "add falling snow",
    "add light rain",
    "add soft fog",
    "add film grain",
    "add a thin white border",
    "add a vignette",
    "add warm light from the left",
    "add a red balloon on the right side",
    "add a small bird in the upper left corner",
    "add a vase of flowers in the foreground",
    "add a cup of coffee in the lower right corner",
    "add the word HELLO in large letters at the bottom",
)
REMOVE = (
    "remove the background and leave it white",
    "remove the noise",
    "remove the colour cast",
    "remove the haze",
    "remove the blur",
    "remove all colours but red",
    "remove everything that distracts from the main subject",
    "remove the fine detail and keep the large shapes",
)
INSTRUCTIONS = (*ADJUST, *STYLE, *BACKGROUND, *ADD, *REMOVE)
