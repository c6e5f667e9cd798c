// Wide formulas can be scrolled with the keyboard; the others take no stop of the Tab key.
addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  for (const formula of document.querySelectorAll("mjx-container[display]")) {
    if (formula.scrollWidth > formula.clientWidth + 1) formula.tabIndex = 0;
    else formula.style.overflow = "visible";
  }
});
