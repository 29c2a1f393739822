// Charts of which one is shown: a button for each, and links that open what is folded.

function startSwitch(box) {
  const buttons = [...box.querySelectorAll(".choices button")];
  const choices = [...box.querySelectorAll(".choice")];
  buttons.forEach((chosen, index) => {
    chosen.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === chosen)));
      choices.forEach((choice, place) => (choice.hidden = place !== index));
      window.dispatchEvent(new Event("resize")); // the chart has a width only now
    });
  });
}

function startFolds() {
  const folds = [...document.querySelectorAll("details.fold")];
  const openNamed = () => {
    const fold = folds.find(({ id }) => `#${id}` === location.hash);
    if (!fold) return;
    fold.open = true;
    fold.scrollIntoView();
  };
  folds.forEach((fold) => fold.addEventListener("toggle", () => window.dispatchEvent(new Event("resize"))));
  window.addEventListener("hashchange", openNamed);
  // Paper shows all; afterwards the folds are as they were.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = folds.filter(({ open }) => !open);
    closed.forEach((fold) => (fold.open = true));
  });
  window.addEventListener("afterprint", () => closed.forEach((fold) => (fold.open = false)));
  openNamed();
}
