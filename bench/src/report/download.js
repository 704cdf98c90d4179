// The page is whole without this: it only unhides a link that saves the JSON which the page carries.
document.querySelectorAll("[data-download]").forEach((link) => {
  const json = document.getElementById("results").textContent;
  link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  link.hidden = false;
});
