for (const slider of document.querySelectorAll(".slider")) {
  const curve = JSON.parse(slider.dataset.curve);
  const input = slider.querySelector("input");
  const show = () => {
    const n = Number(input.value);
    for (const output of slider.querySelectorAll("[data-value]")) {
      const value = curve[output.dataset.value][n];
      const digits = output.dataset.digits;
      if (value === null) output.textContent = "–";
      else output.textContent = digits ? value.toFixed(digits) : value.toLocaleString("en");
    }
  };
  input.addEventListener("input", show);
  show();
  slider.hidden = false;
}
