// What runs when the page has been read.

startTheme();
document.querySelectorAll("div.table").forEach(startTable);
startSamples();
startPlots();
