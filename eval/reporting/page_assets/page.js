// What runs when the page has been read.

startTheme();
document.querySelectorAll("div.table").forEach(startTable);
startSamples();
startCopies();
startPlots();
document.querySelectorAll("div.switch").forEach(startSwitch);
startFolds();
