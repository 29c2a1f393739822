// Buttons that copy a text, and say that they did.

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A browser that lends no clipboard to files still copies what is selected.
    const area = el("textarea", { readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function copies(node, textOf) {
  const label = node.textContent;
  node.addEventListener("click", async () => {
    await copyText(textOf());
    node.textContent = "Copied";
    setTimeout(() => (node.textContent = label), 1500);
  });
  node.hidden = false;
  return node;
}

function startCopies() {
  for (const box of document.querySelectorAll("div.code")) {
    copies(box.querySelector("button"), () => box.querySelector("code").textContent);
  }
}
